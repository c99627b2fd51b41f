"""Ctrl-C and SIGTERM: a checkpoint is saved, by all processes of the same step, and the run goes on bit for bit."""

import signal
import threading

import pytest
from test_training import last, losses, same, tiny, train, written
from torch.utils.data import DataLoader

from backbones.cli import main
from backbones.training import state, stop

CHANGES = {"model": {"network": "training_networks:Signalled"}}
PICTURES = {"every": 2, "pictures": "procedural", "count": 2, "crop": 32, "steps": [1]}


@pytest.fixture
def signals(monkeypatch):
    def sent(names, **how):
        for key, value in {"SIGNALS": names, **how}.items():
            monkeypatch.setenv(f"TRAINING_{key}", value)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield sent
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def log(out):
    return [line.partition(', "seconds_a_step"')[0] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("names", "status"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGTERM SIGTERM", 143)])
def test_a_signal_saves_the_step_under_way_and_the_run_goes_on_bit_for_bit(tmp_path, capsys, signals, names, status):
    train(tmp_path / "whole")
    path = written(tmp_path / "config.toml", tiny(tmp_path / "run", **CHANGES))
    signals(names)
    assert main(["train", "--config", str(path)]) == status
    name = names.split()[0]
    assert capsys.readouterr().err == f"stopped by {name}: the checkpoint of step 4 is saved, and --resume goes on from it\n"
    assert [step for step, _ in state.every(tmp_path / "run")] == [4]
    signals("")
    assert main(["train", "--config", str(path), "--resume"]) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert same(last(tmp_path / "run"), last(tmp_path / "whole"))


def test_a_second_ctrl_c_ends_at_once(tmp_path, capsys, signals):
    signals("SIGINT SIGINT")
    path = written(tmp_path / "config.toml", tiny(tmp_path / "run", **CHANGES, checkpoint={"every": 2}))
    assert main(["train", "--config", str(path)]) == 130
    assert capsys.readouterr().err == "stopped at once; --resume goes on from the last checkpoint, if there is one\n"
    assert [step for step, _ in state.every(tmp_path / "run")] == [2]


@pytest.mark.parametrize("step", [2, 12])
def test_a_signal_in_a_validation_cuts_it_off_and_it_is_made_when_the_run_goes_on(tmp_path, signals, step):
    pictures = {**PICTURES, "every": step}
    train(tmp_path / "whole", **CHANGES, validation=pictures)
    signals("SIGTERM", WHEN="validation")
    with pytest.raises(stop.Interrupted, match=f"the checkpoint of step {step} is saved"):
        train(tmp_path / "run", **CHANGES, validation=pictures)
    assert not (tmp_path / "run" / "validation").exists()
    signals("")
    train(tmp_path / "run", "resume", **CHANGES, validation=pictures)
    assert log(tmp_path / "run") == log(tmp_path / "whole")
    assert same(last(tmp_path / "run"), last(tmp_path / "whole"))


def test_before_the_first_step_a_signal_ends_at_once():
    with pytest.raises(stop.Interrupted) as error, stop.Stop():
        signal.raise_signal(signal.SIGTERM)
    assert error.value.number == signal.SIGTERM


def test_torchrun_may_send_a_ctrl_c_twice(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with stop.Stop() as own:
        own.waits = True
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert own.number == signal.SIGINT
        monkeypatch.setattr(stop.time, "monotonic", lambda: own._since + 2)
        with pytest.raises(stop.Interrupted):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_that_is_ignored_stays_so_and_another_thread_changes_none(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a job in the background
    try:
        with stop.Stop():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    found = []

    def other():
        with stop.Stop():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [before]


def _handlers(items):
    return [signal.getsignal(number) == signal.SIG_IGN for number in (signal.SIGINT, signal.SIGTERM)]


def test_workers_leave_signals_to_the_process_that_trains():
    """Else a Ctrl-C, which all processes of a terminal get, would end them before the step is done."""
    loader = DataLoader([0], num_workers=1, worker_init_fn=stop.undisturbed, collate_fn=_handlers)
    assert list(loader) == [[True, True]]
