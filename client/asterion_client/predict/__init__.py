"""A released model on the site's own files, with the network closed; what it finds stays here."""
