// The widget manager calls MathJax 2's queue on its labels; the book has MathJax 3 and no maths there.
addEventListener("DOMContentLoaded", () => { if (window.MathJax) MathJax.Hub ??= { Queue() {} } })
