"""Networks: the denoiser and the first stage. Pure torch on diffusers' classes; nothing here trains
or samples."""
