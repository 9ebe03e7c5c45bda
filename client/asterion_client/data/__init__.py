"""A site's data: any of the formats in, the same cases out."""
