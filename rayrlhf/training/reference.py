"""The frozen reference's log-probs of preference rows, computed once and carried with the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

COLUMNS = ("ref_chosen", "ref_rejected")
_ROWS = 256  # handed to an actor at once; its forward passes are cut by tokens


def with_reference(
    ds: Dataset, folder: str, microbatch_tokens: int, num_actors: int, resources: dict[str, Any]
) -> Dataset:
    """Encoded preference rows with `ref_chosen` and `ref_rejected`: the log-probability that the model in
    `folder` gives each completion after its prompt, summed over its tokens, in nats.

    `num_actors` actors hold the model, each with `resources` (arguments of `map_batches`).
    """
    return ds.map_batches(
        _Reference,
        fn_constructor_args=(folder, microbatch_tokens),
        batch_size=_ROWS,
        batch_format="pyarrow",
        concurrency=num_actors,
        **resources,
    )


class _Reference:
    """An actor of Ray Data with the reference."""

    def __init__(self, folder: str, microbatch_tokens: int) -> None:
        import torch

        from rayrlhf.models.causal_lm import load_causal_lm

        torch.set_num_threads(1)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = load_causal_lm(folder)
        self.model = model.to(self.device).eval()
        self.microbatch_tokens = microbatch_tokens

    def __call__(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa
        import torch

        from rayrlhf.training.losses import pair_logprobs, pair_padded_tokens
        from rayrlhf.training.microbatches import microbatches

        rows = batch.to_pylist()
        sums = {name: [0.0] * len(rows) for name in COLUMNS}
        with torch.no_grad():
            for numbers in microbatches([pair_padded_tokens(row) for row in rows], self.microbatch_tokens, 1, 0):
                mine = numbers.tolist()
                found = pair_logprobs(self.model, [rows[n] for n in mine], self.device)
                for name, values in zip(COLUMNS, found, strict=True):
                    for n, value in zip(mine, values.tolist(), strict=True):
                        sums[name][n] = value
        for name, column in sums.items():
            batch = batch.append_column(name, pa.array(column, pa.float32()))
        return batch
