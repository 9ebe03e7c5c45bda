"""The site's console: pages for those who decide at a site what may run and what has left."""
