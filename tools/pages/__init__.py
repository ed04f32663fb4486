"What makes pages of notebooks: imports, reference, search, navigation; `tools/docs.py` calls it"
