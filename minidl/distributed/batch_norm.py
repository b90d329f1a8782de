"""Batch normalisation by the statistics of the whole batch, of which every rank has a part."""

from kernels.dispatch import kernels_for
from kernels.reference.batchnorm import move_running
from minidl.array_module import get_array_module
from minidl.function import Function
from minidl.nn.module import Module
from minidl.nn.norm import BatchNorm2d
from minidl.tensor import Tensor, is_grad_enabled


class SyncBatchNorm(Function):
    """The formulas of kernels.reference.batchnorm with sums over all ranks.

    The ranks' means and variances are put together without cancellation: with n_r values of mean
    mu_r and biased variance var_r on rank r,

        n mu = sum n_r mu_r        n var = sum n_r (var_r + (mu_r - mu)^2)

    (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979.) A rank whose samples do not count takes part with n_r = 0.
    """

    keep_inputs = (0, 1)
    buffers = ("mean", "var")

    def __init__(self, team, eps):
        self.world = team.world
        self.counts = team.samples > 0
        self.eps = eps

    def forward(self, x, weight, bias):
        xp = get_array_module(x)
        kernels = kernels_for(x)
        n = x.size // x.shape[1] if self.counts else 0
        own = xp.concatenate([xp.asarray([float(n)]), *kernels.batchnorm_statistics(x)])
        ranks = self.world.all_gather(own, f"batch-norm statistics of {x.shape}")
        n, means, variances = ranks[:, :1], *xp.split(ranks[:, 1:], 2, axis=1)
        self.count = int(n.sum())
        if self.count <= 1:
            raise ValueError("x must have more than one value a channel on all ranks together")
        mean = (n * means).sum(axis=0) / self.count
        var = (n * (variances + (means - mean) ** 2)).sum(axis=0) / self.count
        self.mean, self.var = self.statistics = mean.astype(x.dtype), var.astype(x.dtype)
        return kernels.batchnorm_eval(x, weight, bias, self.mean, self.var, self.eps)

    def backward(self, grad):
        if is_grad_enabled():
            raise RuntimeError("the gradient of SyncBatchNorm cannot be differentiated again")
        x, weight, _ = (None if t is None else t._array for t in self.inputs)
        xp = get_array_module(x)
        kernels = kernels_for(x)
        inv_std = 1 / xp.sqrt(self.var + x.dtype.type(self.eps))
        dx, dweight, dbias = kernels.batchnorm_eval_backward(
            grad._array, x, weight, self.mean, inv_std
        )
        sums = xp.stack([dweight, dbias]).astype(float)
        self.world.sum(sums, f"sums of the gradients of batch-norm on {x.shape}")
        if self.counts:
            # What the mean and the variance pass on: scale (mean(dy) + xh mean(dy xh)).
            scale = weight * inv_std
            through = (scale * mean for mean in (sums / self.count).astype(x.dtype))
            dx -= kernels.batchnorm_eval(x, *through, self.mean, self.var, self.eps)
        return tuple(Tensor._wrap(g) for g in (dx, dweight, dbias))


class SyncBatchNorm2d(BatchNorm2d):
    """A BatchNorm2d that in training normalises by the batches of all ranks of `team` together.

    It takes over the parameters and buffers of `layer`. Every rank must call it as often.
    """

    def __init__(self, layer: BatchNorm2d, team):
        super().__init__(layer.num_features, layer.eps, layer.momentum)
        self.training = layer.training
        self.team = team
        self.weight, self.bias = layer.weight, layer.bias
        for name, buffer in layer.named_buffers():
            setattr(self, name, buffer)

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        function = SyncBatchNorm(self.team, self.eps)
        y = function(x, self.weight, self.bias)
        mean, var = vars(function).pop("statistics")
        with self.running_mean.mutate() as running_mean, self.running_var.mutate() as running_var:
            move_running((running_mean, running_var, self.momentum), mean, var, function.count)
        with self.num_batches_tracked.mutate() as count:
            count += 1
        return y


def synchronize_batch_norm(model: Module, team) -> None:
    """Replace every BatchNorm2d inside `model` by a SyncBatchNorm2d of `team`, a DataParallel.

    Parameters, buffers and names stay the same.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is BatchNorm2d:
                setattr(parent, name, SyncBatchNorm2d(child, team))
