"""mnet: transfer learning for the MobileNet family on the command line."""

__version__ = "0.1.0"
