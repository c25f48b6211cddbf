"""One file per endpoint family; each has a `router`, and being here is all the registration there is."""
