"""The web parts that the operator's and the site's console share: people, sessions, pages."""
