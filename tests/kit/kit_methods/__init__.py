"""Methods that do on purpose what others do by chance; a package of its own, as a third party's."""
