"""Export to other runtimes: files whose outputs were compared with the checkpoint's."""
