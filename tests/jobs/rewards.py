"""A reward function, named in configurations as tests.jobs.rewards:vowels."""


def vowels(prompts: list[str], responses: list[str]) -> list[float]:
    """How many vowels a response has."""
    return [float(sum(letter in "aeiou" for letter in response)) for response in responses]
