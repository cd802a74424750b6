"""The frozen reference's log-probs, computed once and carried with the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from rayrlhf.training.config import TrainConfig

_ROWS = 256  # handed to an actor at once; its forward passes are cut by tokens


def with_reference(
    ds: Dataset,
    columns: dict[str, str],
    folder: str,
    train: TrainConfig,
) -> Dataset:
    """Encoded rows, and for each column of token ids in `columns` another one: the log-probability that the
    model in `folder` gives the tokens after `prompt_length`, summed, in nats.

    As many actors hold the model as `train` has workers, with a worker's CPUs, GPUs, threads, microbatches and
    precision (in another one training would not start at the reference).
    """
    return ds.map_batches(
        _Reference,
        fn_constructor_args=(columns, folder, train),
        batch_size=_ROWS,
        batch_format="pyarrow",
        concurrency=train.num_workers,
        num_cpus=train.cpus_per_worker,
        num_gpus=train.gpus_per_worker or None,
    )


class _Reference:
    """An actor of Ray Data with the reference."""

    def __init__(self, columns: dict[str, str], folder: str, train: TrainConfig) -> None:
        import torch

        from rayrlhf.models.causal_lm import load_causal_lm

        torch.set_num_threads(train.threads_per_worker)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model: Any = load_causal_lm(folder)
        self.model = model.to(self.device).eval()
        self.columns, self.train = columns, train

    def __call__(self, batch: pa.Table) -> pa.Table:
        import pyarrow as pa
        import torch

        from rayrlhf.models.forward import leaves_padding_out
        from rayrlhf.models.precision import autocast
        from rayrlhf.training.losses import completion_logprobs
        from rayrlhf.training.microbatches import microbatches

        starts, is_packed = batch.column("prompt_length").to_pylist(), leaves_padding_out(self.model)
        for ids, name in self.columns.items():
            texts = batch.column(ids).to_pylist()
            sums = torch.zeros(len(texts))
            with torch.no_grad(), autocast(self.device, self.train.engine.precision):
                for rows in microbatches(list(map(len, texts)), self.train.microbatch_tokens, 1, 0, is_packed):
                    some = [texts[n] for n in rows], [starts[n] for n in rows]
                    sums[rows] = completion_logprobs(self.model, *some, self.device).cpu()
            batch = batch.append_column(name, pa.array(sums.numpy(), pa.float32()))
        return batch
