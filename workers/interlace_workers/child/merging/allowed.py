"""The lists of `plain.py`: what a block may use that shares its forward. What is in no list runs alone, and right."""

from collections import OrderedDict
from typing import Any

import torch


def _words(text: str) -> list[str]:
    return text.split()


_SHAPE = _words("""
    broadcast_to chunk diagonal expand expand_as flatten flip gather index_select movedim narrow permute
    repeat repeat_interleave reshape roll select split squeeze swapaxes take_along_dim tensor_split tile transpose tril
    triu unbind unflatten unfold unsqueeze view view_as
""")
_MATHS = _words("""
    abs absolute acos add addmm all allclose amax amin any argmax argmin argsort asin atan atan2 baddbmm bincount bmm
    ceil clamp clamp_max clamp_min clip clone cos cosh count_nonzero cross cummax cummin cumprod cumsum deg2rad diag
    diff dist div divide dot eq equal erf erfc exp exp2 expm1 fix floor floor_divide fmod frac ge greater greater_equal
    gt hypot index_add index_fill isclose isfinite isin isinf isnan kthvalue le lerp less less_equal log log10 log1p
    log2 log_softmax logaddexp logical_and logical_not logical_or logical_xor logit logsumexp lt masked_fill
    masked_scatter masked_select matmul max maximum mean median min minimum mm mode mul multiply mv nan_to_num nanmean
    nanmedian nansum ne neg negative nonzero norm not_equal outer pow prod quantile reciprocal relu remainder renorm
    round rsqrt scatter scatter_add searchsorted sgn sigmoid sign sin sinh softmax sort sqrt square std sub subtract sum
    take tan tanh topk trace true_divide trunc unique unique_consecutive var where xlogy
""")
#: Of a tensor. Some write to it in place: a block's values are its own rows and nobody else's.
TENSOR = frozenset(
    _words("""
    T mT H mH shape dtype device ndim requires_grad is_floating_point is_complex size dim numel nelement element_size
    item tolist detach contiguous to type_as float double half bfloat16 int long short bool cpu new_tensor new_zeros
    new_ones new_full index_copy index_put fill_diagonal_ add_ sub_ mul_ div_ pow_ neg_ abs_ zero_ fill_ copy_ clamp_
    clamp_min_ clamp_max_ relu_ sigmoid_ tanh_ exp_ sqrt_ masked_fill_ index_fill_ index_add_ index_copy_ scatter_
    scatter_add_ addcmul_ addcdiv_ addcmul addcdiv lerp_ round_ floor_ ceil_
    """)
    + _SHAPE
    + _MATHS
)
_FUNCTIONAL = frozenset(
    _words("""
    cosine_similarity cross_entropy elu embedding gelu glu hardtanh huber_loss kl_div l1_loss layer_norm leaky_relu
    linear log_softmax logsigmoid mse_loss nll_loss normalize one_hot pad pairwise_distance relu relu6 rms_norm selu
    sigmoid silu softmax softmin softplus softsign tanh threshold
    """)
)
#: Of a module that was imported, by its name; of `math`, everything.
MODULES: dict[str, frozenset[str]] = {
    "torch": frozenset(
        _words("""
        Tensor Size arange as_tensor cat concat concatenate cosine_similarity cartesian_prod cdist
        diag_embed einsum eye full full_like hstack vstack dstack is_tensor linspace meshgrid numel nn linalg ones
        ones_like select_scatter slice_scatter square stack tensor tensordot tril_indices triu_indices zeros
        zeros_like inf nan pi
        """)
        + _SHAPE
        + _MATHS
    ),
    "torch.nn": frozenset({"functional"}),
    "torch.nn.functional": _FUNCTIONAL,
    "torch.linalg": frozenset(_words("cross det inv lstsq matrix_norm norm pinv qr slogdet solve svd vector_norm")),
    "math": frozenset(),
    "nnsight": frozenset(),
}
_OF_DICT = frozenset(_words("copy get items keys pop setdefault update values"))
_OF_SET = frozenset(_words("add copy difference discard intersection remove union update"))
#: Of other values, by their exact type.
OF_TYPE: dict[type, frozenset[str]] = {
    list: frozenset(_words("append clear copy count extend index insert pop remove reverse")),
    tuple: frozenset(_words("count index")),
    torch.Size: frozenset(_words("count index numel")),
    dict: _OF_DICT,
    OrderedDict: _OF_DICT,
    set: _OF_SET,
    frozenset: _OF_SET - {"add", "discard", "remove", "update"},
    str: frozenset(_words("count endswith find join lower replace rsplit split startswith strip title upper")),
    float: frozenset({"is_integer"}),
    torch.dtype: frozenset({"is_floating_point", "itemsize"}),
    torch.device: frozenset({"type", "index"}),
    range: frozenset({"start", "stop", "step"}),
    slice: frozenset({"start", "stop", "step"}),
}
#: Of what `topk`, `max` and the like give.
RETURNED = frozenset(_words("values indices count index S U V Vh Q R solution"))
#: Types that may be called.
TYPES = frozenset(
    {bool, complex, dict, enumerate, float, frozenset, int, list, range, reversed, set, slice, tuple, zip}
)
BUILTINS: dict[str, Any] = {
    **{kind.__name__: kind for kind in TYPES},
    **{one.__name__: one for one in (abs, all, any, divmod, isinstance, len, max, min, pow, round, sorted, sum)},
}
#: Functions that a payload may refer to by themselves.
FUNCTIONS: dict[tuple[str, str], Any] = {
    ("torch.nn.functional", name): getattr(torch.nn.functional, name) for name in _FUNCTIONAL
}
#: Of a call.
KEYWORDS = frozenset(
    _words("""
    accumulate alpha approximate as_tuple atol axis base beta bias correction decimals default descending device
    diagonal dim dim0 dim1 dims dtype end end_dim eps equal_nan fill_value full_matrices h index indexing indices
    input inputs k keepdim keepdims label_smoothing largest max memory_format min mode n non_blocking norm_type
    normalized_shape num_classes offset ord other output_size p q reduction repeats return_counts return_inverse rtol
    right rounding_mode sep shape shifts size sizes sorted source split_size_or_sections src start start_dim step
    stable strict target tensor unbiased value values w weight x x1 x2 reverse
    """)
)
