"""Files and folders: read with one clear error, published whole or not at all; room on the disk and in memory."""
