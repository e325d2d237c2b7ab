"""Read and write other people's layouts of models: a family is one module that says what its keys and names mean."""
