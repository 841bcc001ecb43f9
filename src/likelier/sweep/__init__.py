"""Many runs of one recipe, compared: `likelier sweep`.

grid      settings → trials, each with a name, a folder and a recipe; and which of them comes first
hopeless  when a run is given up because others do clearly better
choice    results → the frontier of accuracy against KL, and the setting to take
run       the whole, resumable
terminal  the table
"""

from likelier.sweep.run import sweep_recipe

__all__ = ["sweep_recipe"]
