"Clothes-changing person re-identification, one notebook at a time"
__version__ = "0.1.0"
