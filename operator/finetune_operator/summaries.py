"""What came out of a stage, as a person reads it in a condition.

Pure: a report of the trainer in, a sentence out.
"""

from finetune_trainer.contract.termination import PreparedReport, TrainedReport


def summary_of(report: PreparedReport) -> str:
    """Return what prepare found, in a sentence or two."""
    read, kept, held_out = (
        sum(getattr(dataset, field) for dataset in report.datasets)
        for field in ("rows_read", "rows_kept", "rows_held_out")
    )
    dropped = f"{read - kept - held_out} of {read} rows dropped" if kept + held_out < read else f"all {read} rows used"
    if held_out:
        dropped += f", {held_out} held out"
    return (
        f"{report.model} ({report.model_family}, {_count(report.parameters)} parameters, "
        f"{_count(report.trainable_parameters)} trained): {report.sequences} sequences, "
        f"{_count(report.tokens)} tokens, {dropped}; {report.total_steps} steps of {report.global_batch} sequences on "
        f"{report.world_size} processes, {report.precision}, {report.sharding}."
    )


def what_came_out(report: TrainedReport | None) -> str:
    """Return what training has made, in a sentence."""
    if report is None:
        return "The training is done; its last report is lost because the pod of rank 0 was deleted."
    return (
        f"Loss {report.first_loss:.3f} -> {report.final_loss:.3f} in {report.steps} steps; the adapter is in "
        f"{report.adapter_path} on the shared filesystem."
    )


def _count(number: int) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return str(number)
