"""MM-Rec: from raw text to a language model of your own, on the machine you have."""

__version__ = "0.3.0"
