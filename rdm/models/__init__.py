"""Networks: denoisers and first stages, on diffusers' classes; nothing here trains or samples."""
