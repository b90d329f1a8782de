"""What papers call the kernels, and where. The code itself names its sources in its docstrings."""

from typing import NamedTuple


class Paper(NamedTuple):
    """`term` is the paper's own word; `place` a section, an algorithm or nothing."""

    term: str
    source: str
    place: str = ""


_RECTIFIED = Paper("rectified linear unit", "Nair and Hinton 2010")
_UNROLLED = Paper("unrolled convolution", "Chellapilla et al. 2006", "section 3.1")
_BACKWARD = _UNROLLED._replace(term="unrolled convolution, back-propagation")
_SWITCHES = Paper("switches", "Zeiler and Fergus 2014", "section 2.1")
_SUBSAMPLING = Paper("sub-sampling", "LeCun et al. 1998", "section II.B")
_GLOBAL = Paper("global average pooling", "Lin, Chen and Yan 2014", "section 3.2")
_RESPONSE = Paper("local response normalization", "Krizhevsky et al. 2012", "section 3.3")
_SOFTMAX = Paper("softmax", "Bridle 1990")
_BATCH = Paper("batch normalizing transform", "Ioffe and Szegedy 2015", "algorithm 1")

# A kernel that no paper names is not here.
PAPERS = {
    "adam_step": Paper("Adam", "Kingma and Ba 2015", "algorithm 1"),
    "avg_pool2d": _SUBSAMPLING,
    "avg_pool2d_backward": _SUBSAMPLING,
    "batchnorm_affine": Paper("inference", "Ioffe and Szegedy 2015", "algorithm 2, step 11"),
    "batchnorm_backward": _BATCH._replace(place="section 3"),
    "batchnorm_eval": Paper("inference", "Ioffe and Szegedy 2015", "algorithm 2"),
    "batchnorm_eval_backward": Paper("inference", "Ioffe and Szegedy 2015", "algorithm 2"),
    "batchnorm_statistics": _BATCH._replace(term="mini-batch mean and variance"),
    "batchnorm_train": _BATCH,
    "bias_relu": _RECTIFIED,
    "bias_relu_backward": _RECTIFIED,
    "col2im": _BACKWARD,
    "conv2d": _UNROLLED,
    "conv2d_input_grad": _BACKWARD,
    "conv2d_weight_grad": _BACKWARD,
    "conv2d_winograd": Paper("F(m x m, 3 x 3)", "Lavin and Gray 2016", "section 4"),
    "conv_transpose2d": Paper("transposed convolution", "Dumoulin and Visin 2016", "section 4"),
    "dropout": Paper("dropout", "Srivastava et al. 2014", "section 10"),
    "dropout_mask": Paper("Philox4x32-10", "Salmon et al. 2011", "section 3.3"),
    "global_avg_pool2d": _GLOBAL,
    "global_avg_pool2d_backward": _GLOBAL,
    "im2col": _UNROLLED,
    "lrn": _RESPONSE,
    "lrn_backward": _RESPONSE,
    "matmul": Paper("GEMM", "Dongarra et al. 1990"),
    "max_pool2d": _SWITCHES,
    "max_pool2d_backward": _SWITCHES,
    "max_pool2d_gather": _SWITCHES,
    "max_unpool2d": _SWITCHES._replace(term="unpooling"),
    "relu": _RECTIFIED,
    "relu_backward": _RECTIFIED,
    "softmax_cross_entropy": _SOFTMAX,
    "softmax_cross_entropy_backward": _SOFTMAX,
    "sgd_step": Paper(
        "momentum, Nesterov's accelerated gradient", "Sutskever et al. 2013", "section 2"
    ),
}
