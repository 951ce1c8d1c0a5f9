"""What an evaluation is read as: tables, figures, contact sheets, and one HTML file with all of them."""
