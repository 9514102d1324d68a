"""Calibration: a real engine is driven through designed loads, and what its steps took is fitted and kept.

`loads` says what to send and `pace` how much of it, `drive` sends it, `observe` reads what the engine told of its steps
meanwhile, `fit` and `overhead` find the coefficients, `stored` keeps them with their errors and the ranges that they
hold in, `simulated` is the deployment that they stand for, and `accuracy` compares a simulation with what was measured.
"""
