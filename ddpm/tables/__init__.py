"""Records → tables: table.csv and its Markdown twin, published numbers beside ours, verdicts on the
documents' claims, differences in bits/dim, costs.

What is declared in files, claims and published tables, is read without pandas and checked before the first job.
"""
