"""What a run or a study will be and cost, before anything is spent: budgets, grids, recommendations. No torch."""
