"""Copy runs to TensorBoard's event files: a folder a run, which holds nothing but its curve."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from resnests.trackers.tracker import Row, TrackedRun


class TensorBoard:
    """Writes scalars, figures and hyperparameters; seeds of a cell are one group of the latter."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def start(self, run: TrackedRun) -> set[int]:
        place = self.folder / run.name
        tags, epochs = set(), set()
        self.images: dict[str, tuple[int, bytes]] = {}  # by tag the latest one, and its step
        for file in sorted(place.glob("events.out.tfevents.*")):
            if not file.name.endswith(run.id):
                file.unlink()  # of a training that was started afresh since
                continue
            for event in LegacyEventFileLoader(str(file)).Load():
                for value in event.summary.value:
                    tags.add(value.tag)
                    if value.tag == "train_loss":
                        epochs.add(event.step)
                    elif value.HasField("image"):
                        png = value.image.encoded_image_string
                        self.images[value.tag] = event.step, png
        self.ended = metadata.SESSION_END_INFO_TAG in tags
        self.epochs = max(epochs, default=0)
        self.writer = EventFileWriter(str(place), filename_suffix=f".{run.id}")
        if run.hyperparameters and metadata.SESSION_START_INFO_TAG not in tags:
            shared = {key: tag for key, tag in run.tags.items() if key != "seed"}
            values = {**run.hyperparameters, **shared}  # of the group
            self._write(hparams_pb(values, trial_id=run.group, start_time_secs=run.started))
        self.writer.flush()
        return epochs

    def epoch(self, epoch: int, values: Row, time: float) -> None:
        # train_loss comes last: an epoch that was cut off before it is sent again
        names = sorted(values, key=lambda name: (name == "train_loss", name))
        scalars = [Summary.Value(tag=name, simple_value=values[name]) for name in names]
        self._write(Summary(value=scalars), epoch, time)
        self.epochs = max(self.epochs, epoch)
        self.writer.flush()

    def end(self, status: str, metrics: Row, figures: dict[str, bytes]) -> None:
        if metrics and not self.ended:
            scalars = [Summary.Value(tag=f"final/{k}", simple_value=metrics[k]) for k in metrics]
            self._write(Summary(value=scalars), self.epochs)
            self._write(_session_end(status))
        for name, png in figures.items():
            tag = f"figures/{name}"
            step, known = self.images.get(tag, (self.epochs - 1, b""))
            if png != known:  # a figure that has changed is the next one of its kind
                self._write(Summary(value=[_image(tag, png)]), step + 1)
        self.writer.close()

    def _write(self, summary: Summary, step: int = 0, when: float | None = None) -> None:
        self.writer.add_event(
            Event(summary=summary, step=step, wall_time=time.time() if when is None else when)
        )


def _session_end(status: str) -> Summary:
    code = STATUS_SUCCESS if status == "complete" else STATUS_FAILURE
    info = SessionEndInfo(status=code, end_time_secs=time.time())
    about = metadata.create_summary_metadata(HParamsPluginData(session_end_info=info))
    null: Any = metadata.NULL_TENSOR
    tag = metadata.SESSION_END_INFO_TAG
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=null)])


def _image(tag: str, png: bytes) -> Summary.Value:
    width, height = struct.unpack(">II", png[16:24])  # the header's
    image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
    return Summary.Value(tag=tag, image=image)
