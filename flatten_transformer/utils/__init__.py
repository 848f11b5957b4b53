"""Files, terminals and messages: nothing of the subject."""
