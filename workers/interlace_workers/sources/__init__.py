"""Where models come from: one kind of source a file, and `resolving` for whoever wants one of any kind.

* ``smollm2-135m-instruct``                            a name of `catalogue`
* ``package:DISTRIBUTION==VERSION/path/in/wheel.gguf`` `package`, by way of `llama_gguf`
* ``/abs``, ``./rel``, ``~/home``                      `local`
* ``org/name``                                         `hub`
"""
