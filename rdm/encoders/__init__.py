"""Image and text encoders behind one protocol, their fingerprint, and contrastive learning."""

from rdm.encoders.protocol import Encoder, EncoderFingerprint, normalize
from rdm.encoders.registry import DEFAULT_ENCODER, load_encoder

__all__ = ["DEFAULT_ENCODER", "Encoder", "EncoderFingerprint", "load_encoder", "normalize"]
