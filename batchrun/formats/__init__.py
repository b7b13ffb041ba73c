"""Values as text and as Arrow: JSON, amounts, what a terminal may show. Knows nothing of runs."""
