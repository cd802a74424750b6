"""Personal data found by form and, where a number has one, by checksum; replaced by tokens."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from datetime import date

from rayrlhf.data.cleaning.config import Privacy
from rayrlhf.data.cleaning.links import URL
from rayrlhf.data.cleaning.verdict import Operator

# ASCII on purpose: Chinese characters are \w in Python, and may stand right beside an address
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+-](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_%+-])?@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d]|\.\d)")
# a colon before it may end a label (`host:fe80::1`); std::vector, 10::30 and the slice a[::1] are left to is_ipv6
_IPV6 = re.compile(
    r"(?<![A-Za-z0-9_.])(?<![0-9A-Fa-f:]:)(?<![\w)\]]\[)"
    r"(?:[0-9A-Fa-f]{0,4}:){2,7}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9A-Fa-f]{1,4}|(?<=::))(?![A-Za-z0-9_]|:[A-Za-z0-9_:])"
)
# in one piece, in fours, or as American Express; issuers' numbers begin with 2 to 6
_CARD = re.compile(
    r"(?<![\d.-])(?:[2-6]\d{12,18}|[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{1,7}|3\d{3}([ -])\d{6}\2\d{5})(?![\d-])"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]){11,30}(?![A-Za-z0-9])")
_SSN = re.compile(r"(?<![\d-])(\d{3})-(\d{2})-(\d{4})(?![\d-])")
_RESIDENT = re.compile(r"(?<![0-9A-Za-z])\d{17}[\dXx](?![0-9A-Za-z])")
_PHONE_HINT = re.compile(r"\d(?:[^\dA-Za-z\n]{0,3}\d){6}")  # fewer digits make no number
# where digits are dense: international, Chinese mobile and fixed, American with its usual marks
_PLAIN_PHONE = re.compile(
    r"(?<![\d.,+-])(?:\+\d{1,3}(?:[ -]?\d{2,5}){2,4}|1[3-9]\d(?:[ -]?\d{4}){2}|0\d{2,3}-\d{7,8}|"
    r"(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4})(?![\d-])"
)
_MANY_HINTS = 200
_DENSE = 0.2  # share of a text in hints
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)  # GB 11643: 2**(17 - place) mod 11
_IBAN_LENGTHS = {  # ISO 13616 registry
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "CH": 21,
    "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18,
    "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23,
    "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LI": 21, "LT": 20, "LU": 20, "LV": 21,
    "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28,
    "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "TN": 24,
    "TR": 26, "UA": 29, "VG": 24, "XK": 20,
}  # fmt: skip


def luhn(number: str) -> bool:
    """Whether the digits of a payment card end in the right check digit (ISO/IEC 7812)."""
    digits = [int(char) for char in number if char.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1


def iban_length(text: str) -> int:
    """How many first characters of `text` are an IBAN with its check digits right; 0 for none."""
    wanted = _IBAN_LENGTHS.get(text[:2], 0)
    place = count = 0
    while place < len(text) and count < wanted:
        count += text[place] != " "
        place += 1
    compact = text[:place].replace(" ", "")
    if not wanted or len(compact) != wanted:
        return 0
    number = int("".join(str(int(char, 36)) for char in compact[4:] + compact[:4]))
    return place if number % 97 == 1 else 0


def resident_number(number: str) -> bool:
    """Whether a Chinese resident identity number has a possible date of birth and its check digit (GB 11643-1999)."""
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, number[:17], strict=True))
    if "10X98765432"[total % 11] != number[17].upper() or number[0] not in "12345678":
        return False
    try:
        return 1850 <= date(int(number[6:10]), int(number[10:12]), int(number[12:14])).year <= 2100
    except ValueError:
        return False


def social_security(match: re.Match[str]) -> bool:
    """Whether a US number is one that can be given: no area 000, 666 or 9xx, group 00 or serial 0000."""
    area, group, serial = match.groups()
    return area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"


def is_ipv4(text: str) -> bool:
    """Whether `text` is an IPv4 address; 1.2.3 and 300.1.1.1 are none."""
    try:
        return bool(ipaddress.IPv4Address(text))
    except ValueError:
        return False


def is_ipv6(text: str) -> bool:
    """Whether `text` is an IPv6 address and not code: a::b and 10::30 could be addresses, and are more likely none.

    It has three groups that are not empty, or begins as addresses in use do (RFC 4291: fe80, fc, fd, 2000 to 3fff in
    full), or is the loopback or one of IPv4.
    """
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return False
    first = text.partition(":")[0]
    is_known = len(first) == 4 and (address.is_link_local or first[:2].lower() in ("fc", "fd") or first[0] in "23")
    return sum(map(bool, text.split(":"))) >= 3 or is_known or address.is_loopback or address.ipv4_mapped is not None


def build(config: Privacy) -> Operator:
    """Replaces what `config` names; text without any of it comes back as it is."""
    passes: list[Callable[[str], str]] = []
    if config.url is not None:
        passes.append(_replacing(URL, config.url))
    if config.email is not None:
        passes.append(_replacing(_EMAIL, config.email, needs="@"))
    if config.national_id is not None:  # before cards: both may be 18 digits
        passes.append(_replacing(_RESIDENT, config.national_id, lambda match: resident_number(match.group())))
        passes.append(_replacing(_SSN, config.national_id, social_security))
    if config.iban is not None:
        passes.append(_ibans(config.iban))
    if config.card is not None:
        passes.append(_replacing(_CARD, config.card, lambda match: luhn(match.group())))
    if config.ip is not None:
        passes.append(_replacing(_IPV6, config.ip, lambda match: is_ipv6(match.group()), needs=":"))
        passes.append(_replacing(_IPV4, config.ip, lambda match: is_ipv4(match.group())))
    if config.phone is not None:
        passes.append(_phones(config.phone, config.phone_regions))

    def protect(text: str) -> str:
        for replace in passes:
            text = replace(text)
        return text

    return protect


def _replacing(
    pattern: re.Pattern[str],
    token: str,
    holds: Callable[[re.Match[str]], bool] | None = None,
    needs: str = "",
) -> Callable[[str], str]:
    """Matches for which `holds` to `token`; text without `needs` has none and is not searched."""

    def one(match: re.Match[str]) -> str:
        return token if holds is None or holds(match) else match.group()

    return lambda text: pattern.sub(one, text) if needs in text else text


def _ibans(token: str) -> Callable[[str], str]:
    def one(match: re.Match[str]) -> str:
        found = iban_length(match.group())
        return token + match.group()[found:] if found else match.group()

    return lambda text: _IBAN.sub(one, text)


def _phones(token: str, regions: tuple[str, ...]) -> Callable[[str], str]:
    import phonenumbers

    def is_valid(match: re.Match[str]) -> bool:
        for region in regions or (None,):
            try:
                if phonenumbers.is_valid_number(phonenumbers.parse(match.group(), region)):
                    return True
            except phonenumbers.NumberParseException:
                continue
        return False

    plain = _replacing(_PLAIN_PHONE, token, is_valid)

    def replace(text: str) -> str:
        if _PHONE_HINT.search(text) is None:
            return text
        covered = [len(hint) for hint in _PHONE_HINT.findall(text)]
        if len(covered) > _MANY_HINTS and sum(covered) > _DENSE * len(text):
            return plain(text)  # the library tries every grouping of a table's numbers: a hundred times slower
        for region in regions or (None,):
            matcher = phonenumbers.PhoneNumberMatcher(text, region, leniency=phonenumbers.Leniency.VALID)
            for match in reversed(list(matcher)):  # from the end, so that earlier places stay right
                text = text[: match.start] + token + text[match.end :]
        return text

    return replace
