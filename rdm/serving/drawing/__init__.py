"""Drawing: processes that hold networks, one a device, and what is sent to them."""
