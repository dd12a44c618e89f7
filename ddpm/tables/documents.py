"""The source documents, by the numbers that README.md gives them, and how a place in one is cited. No torch."""

DOCUMENTS = {
    "000": "Poster on MNIST",
    "001": "Sedykh 2024",
    "002": "Han 2025",
    "003": "Shariatian & Conforti 2025",
    "004": "Chen & Yi",
}


def cited(source: dict) -> str:
    """Authors and year first, the document that reports it after: `Ho et al. 2020 (002, table 2)`."""
    return f"{source['paper']} ({source['document']}, {source['place']})"
