"""vLLM runs planned folders: a plugin that skimp's installation brings along, see :mod:`.register`.

:mod:`.register` and :mod:`.model` run in vLLM's process; they need vLLM, what it brings, and
:mod:`skimp.models.carve`. :mod:`.target` is skimp's side and needs no vLLM.
"""
