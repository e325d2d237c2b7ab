PRIORS = ""
