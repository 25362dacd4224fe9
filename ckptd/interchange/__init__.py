"""Other people's checkpoint formats, read and written without torch: safetensors, torch.save, Distributed Checkpoint."""
