"""Image and text encoders behind one protocol, their fingerprint, and contrastive learning."""

from rdm.encoders.names import EncoderName, weights_path
from rdm.encoders.protocol import Encoder, EncoderFingerprint, Precision, normalize
from rdm.encoders.registry import DEFAULT_ENCODER, fastest_precision, load_encoder

__all__ = [
    "DEFAULT_ENCODER",
    "Encoder",
    "EncoderFingerprint",
    "EncoderName",
    "Precision",
    "fastest_precision",
    "load_encoder",
    "normalize",
    "weights_path",
]
