"""The folder's helper module, ``catalogue``, is found because this file is here."""
