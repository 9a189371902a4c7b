// Default prelude of linear_coop and attention_coop: cooperative matrices of 16x16.

alias MatrixA = coop_mat16x16<f16, A>;
alias MatrixB = coop_mat16x16<f16, B>;
alias MatrixC = coop_mat16x16<f32, C>;
