"""Runtimes behind one contract (:mod:`.base`), one module each; :mod:`.registry` imports them by name, when used."""
