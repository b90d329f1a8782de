"""The assertion of a gradient test."""

from minidl.gradcheck import gradcheck, gradgradcheck


def assert_gradients_match(op, *inputs, second_order: bool = True, **options) -> None:
    """Assert that ``op(*inputs)`` has the derivatives that central differences find.

    First derivatives entry by entry, second ones too unless `second_order` is False. Inputs that
    are to be checked require grad and are float64. Options are those of `minidl.gradcheck`
    (eps, atol, rtol, fast). Raises GradcheckError, an AssertionError, where they do not.
    """
    gradcheck(op, inputs, **options)
    if second_order:
        gradgradcheck(op, inputs, **{"fast": True, **options})
