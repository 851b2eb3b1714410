"""Questions whose answers a program can check: arithmetic, star graphs, Sudoku, lists, word problems."""
