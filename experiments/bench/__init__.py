"""Speed: of both packages, and beside other libraries."""
