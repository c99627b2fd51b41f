"""What a run reports: log.jsonl, TensorBoard, pictures of validations, a bar."""

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from backbones import whole
from backbones.pictures import io as images

from .record import BOARD, LOG, VALIDATION, Record
from .validation import Row


class Logs:
    """log.jsonl, TensorBoard where it is installed, validation pictures, and a bar with the loss and the time left.

    Args:
        record: what the run writes, and where.
        first: the steps that were done before.
        progress: whether a bar and the results of validations are printed.
        steps: the steps of the whole run.
    """

    def __init__(self, record: Record, first: int, progress: bool, steps: int) -> None:
        from tqdm import tqdm

        self.record, self.start, self.first, self.progress = record, time.perf_counter(), first, progress
        path = record.out / LOG
        record.add(LOG)
        kept = [line for line in _lines(path) if line["step"] <= first]  # what came after the checkpoint comes again
        with whole.file(path) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.file = path.open("a", buffering=1)
        self.bar = tqdm(total=steps, initial=first, unit="step", disable=not (progress and sys.stderr.isatty()))
        before = set((record.out / BOARD).glob("*"))
        self.board = _board(record.out / BOARD, first)
        record.add(*(f"{BOARD}/{path.name}" for path in (record.out / BOARD).glob("*") if path not in before))

    def step(self, step: int, loss: float, rate: float, norm: float, write: bool) -> None:
        """Reports a step of the optimizer: on the bar, and in the log if `write`."""
        self.bar.update()
        self.bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
        if write:
            seconds = (time.perf_counter() - self.start) / (step - self.first)
            row = {"step": step, "loss": loss, "lr": rate, "grad_norm": norm, "seconds_a_step": round(seconds, 4)}
            row["threads"] = torch.get_num_threads()
            self._write(row, {"train/loss": loss, "train/lr": rate, "train/grad_norm": norm})

    def validation(self, step: int, rows: list[Row]) -> None:
        """Reports a validation after a step: means and single values in the log, and the pictures."""
        for n in dict.fromkeys(row.steps for row in rows):
            own = [row for row in rows if row.steps == n]
            psnr, ssim = (sum(getattr(row, key) for row in own) / len(own) for key in ("psnr", "ssim"))
            each = {row.name: [round(row.psnr, 4), round(row.ssim, 5)] for row in own}
            numbers = {f"validation/psnr_{n}": psnr, f"validation/ssim_{n}": ssim}
            self._write({"step": step, "solve_steps": n, "psnr": psnr, "ssim": ssim, "pictures": each}, numbers)
            if self.progress:
                self.bar.write(f"step {step}: {n} solver steps, PSNR {psnr:.2f} dB, SSIM {ssim:.4f}", file=sys.stdout)

        def name_of(row: Row) -> str:
            return f"{VALIDATION}/{step:08d}_{row.name}_{row.steps}.png"

        self.record.add(*map(name_of, rows))
        for row in rows:
            images.write(self.record.out / name_of(row), images.Picture(row.picture, None, 8, None))
            if self.board is not None:
                self.board.add_image(f"{row.name}/{row.steps}", row.picture[0], step)

    def _write(self, row: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
        self.file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self.bar.close()
        with contextlib.suppress(OSError):  # of a full disk, which has been told
            self.file.close()
        if self.board is not None:
            self.board.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log that are whole."""
    rows = []
    if path.is_file():
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # cut off where the run was killed
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    rows.append(row)
    return rows


def _board(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=first + 1)
