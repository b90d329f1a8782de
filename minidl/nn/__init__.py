"""Layers: modules that own parameters and call `minidl.ops`."""

from minidl.nn import init
from minidl.nn.activation import Dropout, Flatten, Identity, ReLU, Sigmoid, Tanh
from minidl.nn.container import ModuleList, Sequential
from minidl.nn.conv import Conv2d, ConvTranspose2d
from minidl.nn.fusion import conv_block, norm_block
from minidl.nn.linear import Linear
from minidl.nn.module import Module, Parameter
from minidl.nn.norm import BatchNorm2d, LocalResponseNorm
from minidl.nn.pool import AdaptiveAvgPool2d, AvgPool2d, GlobalAvgPool2d, MaxPool2d

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "Identity",
    "Linear",
    "LocalResponseNorm",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "Parameter",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "conv_block",
    "init",
    "norm_block",
]
