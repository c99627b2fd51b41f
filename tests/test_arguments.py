"""Every public function, each argument replaced by junk: a refusal in one line, or a value that serves."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from instances import PROCESS as P

import dosde
from dosde import (
    Refused,
    expansion,
    grid,
    method,
    noise,
    objective,
    posterior,
    prediction,
    presets,
    process,
    schedule,
    shift,
    srk,
)
from dosde.plan import marginals

JUNK = {
    "None": None,
    "text": "abc",
    "negative": -1,
    "zero": 0,
    "NaN": math.nan,
    "infinity": math.inf,
    "list": [1, 2],
    "nothing": [],
    "nested": [[1], [2, 3]],
    "tensor": torch.ones(2, 3),
    "half": torch.tensor(0.5, dtype=torch.float16),
    "array": np.ones(3),
    "object": object(),
    "complex": 1j,
    "dict": {},
    "function": lambda *args: None,
    "class": torch.nn.Linear,
    "huge": 10**400,
    "true": True,
    "path": Path("x"),
    "fraction": 2.5,
    "bytes": b"x",
}
X = torch.zeros(1, 3, 4, 4)
A = posterior.downsampling((4, 4), (2, 2))
D = lambda y, sigma: 0.5 * y  # noqa: E731
MEASURED = (D, A(X), A, 0.1)
M = marginals(P, 5)
GOOD = {
    schedule.linear: (1e-4, 0.02, 1000),
    schedule.scaled_linear: (0.00085, 0.012, 1000),
    schedule.cosine: (0.008,),
    schedule.from_alphas_cumprod: (torch.tensor([0.9, 0.5]),),
    schedule.table_index: (0.5, 1000),
    schedule.ve: (lambda t: t,),
    schedule.with_shift: (shift.linear(), 1.0, 0.5),
    shift.cosine: (0.5,),
    shift.linear: (0.5,),
    shift.exponential: (15, 0.0004, 0.98, 0.3),
    shift.from_table: (torch.tensor([0, 0.5, 1.0]),),
    grid.uniform: (P, 5),
    grid.log_lam: (80.0, 0.03),
    grid.karras: (80.0, 0.03, 7.0),
    grid.respaced: (15,),
    grid.angle: (0.2,),
    grid.few_step: (0.2,),
    grid.two_stage: (grid.uniform,),
    grid.graded_start: (2, grid.uniform),
    method.dos: (M, 2),
    method.adams: (M, 2, expansion.lam, 1.0, False, False),
    method.ode: (M, 2, expansion.lam, False, False),
    method.matched: (0.2, 0.0),
    method.resshift: (M, 1),
    method.using: (method.dos,),
    expansion.v: (0.2,),
    expansion.sqrt_v: (0.2,),
    presets.dossr: (5, 0.5),
    presets.resshift: (15, 15),
    presets.few_step: (0.2, 0.0),
    presets.dossr_etas: (0.5, 1000),
    presets.dossr_times: (5, 0.5, 1000),
    presets.resshift_input_scale: (P(0.2), True),
    process.resshift: (15, 2.0, 0.0004, 0.98, 0.3),
    process.flow: (0.0, shift.linear()),
    dosde.Process: (schedule.linear(), shift.cosine()),
    P.__call__: (0.5,),
    P.f: (0.2,),
    P.score: (X, X, X, 0.3),
    P.sample: (X, X, 0.3, X),
    P.transition: (0.2, 0.3),
    P.chain: (0.2, 0.3),
    P.time: (1.0,),
    dosde.plan: (P, 5, 3),
    dosde.solve: (lambda x, x_hat0, t: 0 * x, X, 5, 3),
    dosde.law: (dosde.plan(P, 5), 0.2),
    dosde.Denoiser: (lambda x, x_hat0, t: 0 * x, P, "x0"),
    objective.loss: (X, "x0", P, X, X, 0.3, X),
    objective.target: ("x0", P, X, X, 0.3, X),
    objective.plain_weight: ("x0", P(0.2)),
    objective.bound_weights: ("x0", P, torch.tensor([0.5, 0.3, 0.0])),
    noise.Brownian: (0,),
    srk.Stages: (noise.Brownian(0), 64),
    prediction.to_x0: ("v", P(0.2)),
    prediction.convert: (X, X, X, P(0.2), "v", "x0"),
    dosde.cold.solve: (lambda x, x_hat0, t: x, X, lambda x0, t: x0, 5),
    dosde.cold.blur: (2.0,),
    posterior.mmps: (*MEASURED, 8),
    posterior.diffpir: (*MEASURED, 1.0, 20),
    posterior.pigdm: (*MEASURED, 1.0, 20),
    posterior.jacobian_free: (*MEASURED, posterior.Covariance(1.0), 20),
    posterior.dps: (*MEASURED, 1.0),
    posterior.scale: (D, X, 1.0, 8, None),
    posterior.Operator: (A.forward, A.adjoint),
    posterior.linear: (lambda x: x, (3, 4, 4)),
    posterior.downsampling: ((4, 4), (2, 2)),
    posterior.blur: (torch.ones(3, 3), "circular"),
    posterior.mask: (torch.ones(4, 4),),
    posterior.grey: ((0.3, 0.6, 0.1),),
    posterior.matrix: (torch.ones(2, 3),),
    posterior.Covariance: (1.0, lambda x: x, lambda x: x),
    posterior.full: (torch.eye(3),),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("function", GOOD, ids=lambda f: f"{f.__module__}.{f.__qualname__}")
def test_junk_is_refused_in_one_line(function):
    good = GOOD[function]
    more = {"process": P} if function is dosde.solve else {}
    function(*good, **more)
    for i in range(len(good)):
        for name, junk in JUNK.items():
            try:
                function(*good[:i], junk, *good[i + 1 :], **more)
            except Exception as raised:
                error = raised
                short = "\n" not in str(error) and len(str(error)) < 400
                if not (isinstance(error, Refused) and short):
                    pytest.fail(f"argument {i}, {name}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("function", [schedule.linear, method.dos, presets.few_step, grid.karras])
def test_a_word_too_much_names_the_function(function):
    with pytest.raises(TypeError, match=rf"{function.__name__}\(\) got an unexpected keyword argument 'colour'"):
        function(colour=3)
