"""A denoiser of a prior and a linear measurement make a denoiser of the posterior, for any process, method and sampler.

With the prior's D(y, sigma) = E[x0 | x0 + sigma eps = y] and a measurement A x0 + s n, the posterior's is

    E[x0 | y, measurement] = x0 + V A^T (s^2 + A V A^T)^-1 (measurement - A x0),        x0 = D(y, sigma)

if x0 given y is Gaussian with covariance V. The methods differ in V. Each returns a function (y, sigma, **kwargs) -> x0, like
the denoiser that it was given: `interop.from_denoiser` takes it, and so do the samplers of k-diffusion.

    function          V                                   network calls   VJPs         right for
    diffpir           sigma^2 / weight                    1               0            a flat prior
    pigdm             sigma^2 J, and r^2 in the inverse   1               1            a white Gaussian prior
    mmps              sigma^2 J                           1               iterations   any Gaussian prior
    jacobian_free     (C^-1 + sigma^-2)^-1, C given       1               0            a Gaussian prior of covariance C
    dps               sigma^2 J, and no A V A^T           1               1            none

J is the Jacobian of D at y. A VJP costs about two network calls, and its memory is that of training.
"""

from .covariance import Covariance as Covariance
from .covariance import full as full
from .methods import diffpir as diffpir
from .methods import dps as dps
from .methods import jacobian_free as jacobian_free
from .methods import mmps as mmps
from .methods import pigdm as pigdm
from .operators import Operator as Operator
from .operators import blur as blur
from .operators import downsampling as downsampling
from .operators import grey as grey
from .operators import linear as linear
from .operators import mask as mask
from .operators import matrix as matrix
from .scale import scale as scale
