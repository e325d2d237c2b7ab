"""The parts of a pack: tensors as bytes that can be read without any other part, with numpy alone."""
