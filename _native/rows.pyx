# cython: language_level=3, auto_pickle=False, autotestdict=False
