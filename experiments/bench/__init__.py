"""Speed: of both towers, and beside other libraries."""
