// Default prelude of linear_coop and attention_coop in place of matrices16.wgsl: cooperative matrices of 8x8.

alias MatrixA = coop_mat8x8<f16, A>;
alias MatrixB = coop_mat8x8<f16, B>;
alias MatrixC = coop_mat8x8<f32, C>;
